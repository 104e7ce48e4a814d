def pytest_terminal_summary(terminalreporter):
    """What became of the mutants, also where the test passes or runs in another process."""
    for report in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for name, value in report.user_properties:
            if name == 'mutants':
                terminalreporter.section('mutants')
                terminalreporter.write_line(value)
