"""The demo in a browser: `trade app` here, `scripts/space/` on the Hub. Needs the extra `app`."""
