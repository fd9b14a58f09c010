"""What a user does: the command line, calibration data, backends, repair, verification, reports."""
