"""What the WebUI is doing (shared_state.py:12)."""

import time


class State:
    skipped = False
    interrupted = False
    stopping_generation = False
    job = ""
    job_no = 0
    job_count = 0
    sampling_step = 0
    sampling_steps = 0
    current_latent = None
    textinfo = None
    time_start = None
    server_command = None

    def request_restart(self):
        self.interrupt()
        self.server_command = "restart"

    def skip(self):
        self.skipped = True

    def interrupt(self):
        self.interrupted = True

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0

    def begin(self, job="(unknown)"):
        self.sampling_step, self.time_start, self.job_count, self.job_no = 0, time.time(), -1, 0
        self.current_latent = self.textinfo = None
        self.skipped = self.interrupted = self.stopping_generation = False
        self.job = job

    def end(self):
        self.job, self.job_count = "", 0
