"""How good: accuracy, paired differences with their intervals, and the gate that decides what may ship.

May import the runtime and ``timing``'s measurement. Runs no engine and draws nothing.
"""
