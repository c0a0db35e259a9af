"""Curation: preference data made of what models, judges and people say."""
