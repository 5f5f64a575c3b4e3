"""How much memory engines take for a model: what is known of llama.cpp and vLLM, computed before anything is loaded (PLC-5)."""
