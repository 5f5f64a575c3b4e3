"""The event-sourced core: types, events, journal, projections and services."""
