from tests.stress.faults import Fault
FAULT = LIVE = Fault("stub", "", "", 1, 1, lambda plan: iter(()))
