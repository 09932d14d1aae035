"""Programs that break runs on purpose and count what comes out: ``make faults``. Not collected by pytest."""
