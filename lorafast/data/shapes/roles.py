"""Who speaks in a chat, under the names that data sets use."""
from __future__ import annotations

ASSISTANT = "assistant"

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": ASSISTANT, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT, "chatbot": ASSISTANT,
    "model": ASSISTANT, "ai": ASSISTANT, "function_call": ASSISTANT, "tool_call": ASSISTANT,
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}
"""Name in the data, in lower case -> the role as chat templates know it."""


def role_of(name: str) -> str:
    """The role of this name; a name that is not known is left as it is, for templates that know it."""
    return ROLES.get(name.lower(), name)
