"""Where an RLM stands in for parts of LangChain: a chat model, a tool, a middleware."""
