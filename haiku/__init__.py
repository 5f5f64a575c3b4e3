"""The bundled haiku model."""
