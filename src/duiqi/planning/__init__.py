"""What a run will need before it is begun: memory, steps, time and disk, and what to change when it does not fit."""
