"""Tests: a real PostgreSQL, a real Redis and, where tasks matter, a real worker."""
