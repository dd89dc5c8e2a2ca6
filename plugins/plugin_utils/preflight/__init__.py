"""Checks of the settings, without any host. checks.setting_problems runs them; names and files look at where values are set."""
