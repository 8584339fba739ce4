"""The demo in a browser: `trade app` here, `scripts/space/` on the Hub. Needs `pip install 'trade-hf[app]'`."""
