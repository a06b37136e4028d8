from typing import Any

def build_info() -> dict[str, Any]: ...

# With the methods of ``steerfast.routing.router.Router``, as which it is used.
Router: Any
