"""Experiment trackers, each behind one thin sink that is imported only when `report_to` names it."""
