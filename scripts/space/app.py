"""The Space: the demo of trade_hf/app/, whose package lies beside this file there (scripts/push_to_hub.py).

Run: trade app
"""

from trade_hf.app.page import serve

serve()
