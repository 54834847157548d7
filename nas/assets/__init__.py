"""The shipped data and small trained weights; beside each, the script that makes it again."""

from pathlib import Path

FOLDER = Path(__file__).parent
