"""Measurements on trained models. May import models; nothing but scripts imports this."""
