"""Tests that every member of a shelf passes by existing."""
