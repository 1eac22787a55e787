"""Pictures of attributions and attention: arrays and tables in, Matplotlib axes or one HTML page out."""

from captum_attn_lime.plot.comparison import agreement, bars
from captum_attn_lime.plot.global_view import global_view
from captum_attn_lime.plot.heads import attention, heads
from captum_attn_lime.plot.html import html_page
from captum_attn_lime.plot.image import image, images, images_height
from captum_attn_lime.plot.save import save
from captum_attn_lime.plot.text import text, texts, texts_height
from captum_attn_lime.plot.weights import weights

__all__ = [
    "agreement",
    "attention",
    "bars",
    "global_view",
    "heads",
    "html_page",
    "image",
    "images",
    "images_height",
    "save",
    "text",
    "texts",
    "texts_height",
    "weights",
]
