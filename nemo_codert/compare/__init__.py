"""Strategies trained alike over seeds and folds, and the tables that compare them."""
