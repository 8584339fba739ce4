"""The RASP language: programs, their text, their meaning and their canonical form. Needs numpy alone."""
