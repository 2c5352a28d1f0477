"""Recursive Language Models on LangGraph."""
