"""From a prompt to a reply: decoding and the stream of reply events."""
