"""Other people's models, made to rotate through rope_ext."""
