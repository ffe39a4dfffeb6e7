"""Speed and memory beside what one would write instead; see README.md."""
