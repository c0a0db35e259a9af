"""A plan from settings to text. Light: what a plan is made with is imported after the libraries' memory is measured."""

from __future__ import annotations

import json

from duiqi.planning.machine import resident_after_imports
from duiqi.settings.stages import StageConfig, StageName


def printed_plan(stage: StageName, config: StageConfig, *, as_json: bool) -> str:
    """What a run will need, and what to change where it does not fit: for the terminal, or as JSON.

    Raises:
        UserError: What the run itself would refuse at its beginning.
    """
    libraries = resident_after_imports()

    from duiqi.planning.plan import advise, make_plan
    from duiqi.planning.table import lines_of, values_of

    plan = make_plan(stage, config, libraries=libraries)
    advice = advise(plan, config)
    return json.dumps(values_of(plan, advice), indent=2) if as_json else "\n".join(lines_of(plan, advice))
