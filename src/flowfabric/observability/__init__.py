"""What people and their tools see of a running process: metrics, traces and logs.

Nothing here is imported until somebody asks for it, and its libraries come with extras:
``flowfabric[metrics]`` and ``flowfabric[otel]``.
"""
