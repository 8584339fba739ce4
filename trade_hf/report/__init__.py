"""What was found, for people: HTML and SVG as text, for a report's page, notebooks and the demo."""
