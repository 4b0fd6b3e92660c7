"""Separate processes for work that may crash, or need any time or memory. The operating system limits them.

A process starts with the first request, answers all later ones, and ends with this process. Requests and answers are
bytes, so a process cannot return objects.
"""
