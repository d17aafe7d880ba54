"""The server: chat models of ours, and servers of others, behind OpenAI's interfaces, with keys, limits and figures in front."""
