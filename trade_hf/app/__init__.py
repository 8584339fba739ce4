"""The demo in a browser: `trade app` here, `scripts/space/` on the Hub. Needs the extra `app`."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: nothing is sent anywhere
