"""Private helpers that know nothing of attention, adapters or LIME."""
