"""Pictures of attributions and attention: arrays and tables in, Matplotlib axes or one HTML page out."""

from captum_attn_lime.plot.comparison import agreement, bars
from captum_attn_lime.plot.heads import attention, heads
from captum_attn_lime.plot.html import html_page
from captum_attn_lime.plot.image import image
from captum_attn_lime.plot.text import text, texts, texts_height

__all__ = ["agreement", "attention", "bars", "heads", "html_page", "image", "text", "texts", "texts_height"]
