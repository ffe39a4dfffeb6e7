"""Speed and memory, measured side by side with what one would write instead; see README.md."""
