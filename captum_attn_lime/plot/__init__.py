"""Plots of attributions and attention: arrays and tables in, Matplotlib axes or an HTML page out."""

from captum_attn_lime.plot._comparison import agreement, bars
from captum_attn_lime.plot._global_view import global_view
from captum_attn_lime.plot._heads import attention, heads
from captum_attn_lime.plot._html import html_page
from captum_attn_lime.plot._image import image, images
from captum_attn_lime.plot._save import save
from captum_attn_lime.plot._text import text, texts
from captum_attn_lime.plot._weights import weights

__all__ = [
    "agreement",
    "attention",
    "bars",
    "global_view",
    "heads",
    "html_page",
    "image",
    "images",
    "save",
    "text",
    "texts",
    "weights",
]
