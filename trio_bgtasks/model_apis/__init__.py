"""Tools at the APIs of models: what a request says of them, and the answer to each call.

Nothing of this needs, or imports, the SDK of a model: tools become plain dicts, and calls are read
from the SDKs' objects or from dicts. The importers take tool objects of other frameworks, of which
only those that made them have the package.
"""

from ._dispatch import dispatch as dispatch
from ._importers import from_openai_agents as from_openai_agents
from ._importers import from_pydantic_ai as from_pydantic_ai
from ._schemas import to_anthropic as to_anthropic
from ._schemas import to_openai_chat as to_openai_chat
from ._schemas import to_openai_responses as to_openai_responses
