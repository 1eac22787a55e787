"""Private helpers, independent of attention, adapters and LIME."""
