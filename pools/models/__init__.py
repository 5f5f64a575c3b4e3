"""Models on this host: where they come from, how they get here, and what is kept of them (MOD-1, MOD-2, MOD-3).

:mod:`.staging` is the way in: :func:`~.staging.stage` takes a reference and answers with a file or directory that is
whole. :mod:`.references` says what a reference may be, :mod:`.sources` who speaks to which kind of server,
:mod:`.cache` what stays on the disk and what goes when it has to be smaller.
"""
