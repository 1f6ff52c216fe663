"""Which windows an episode is cut into."""


def check_lengths(trace_length: int | None, burn_in_length: int, sequence_period: int | None) -> None:
    """
    Check that windows of these lengths cover every step.

    :raises ValueError: if they do not; the sentence says what to change
    """
    if trace_length is not None and trace_length < 1:
        raise ValueError(
            f"trace_length={trace_length} leaves no step to learn from; give at least 1, or None for whole episodes."
        )
    if burn_in_length < 0:
        raise ValueError(f"burn_in_length={burn_in_length} is negative; give 0 for no burn-in.")
    if sequence_period is not None and sequence_period < 1:
        raise ValueError(f"sequence_period={sequence_period} must be at least 1, or None for trace_length.")
    if trace_length is None and (burn_in_length > 0 or sequence_period is not None):
        raise ValueError(
            f"trace_length=None takes whole episodes, which start at their first step, but burn_in_length={burn_in_length} "
            f"and sequence_period={sequence_period}; set a trace_length, or leave them at 0 and None."
        )
    if trace_length is not None and sequence_period is not None and sequence_period > trace_length:
        raise ValueError(
            f"sequence_period={sequence_period} is larger than trace_length={trace_length}, so some steps would never be "
            "trained; lower sequence_period or raise trace_length."
        )
