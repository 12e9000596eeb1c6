"""A button that opens a chapter on Binder, as soon as `repository.url` of _config.yml names where the book lives.

The theme draws the button, but fails on a Binder without a repository. So Binder is named here, and only with one.
"""

BINDER = "https://mybinder.org"


def add_binder(app, config):
    """Name Binder among the theme's launch buttons, if the address of a repository is known and no other Binder is."""
    options = config.html_theme_options
    if options.get("repository_url"):
        buttons = options.setdefault("launch_buttons", {})
        buttons["binderhub_url"] = buttons.get("binderhub_url") or BINDER


def setup(app):
    app.connect("config-inited", add_binder)
    return {"version": "1.0", "parallel_read_safe": True}
