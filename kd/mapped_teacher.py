"""A teacher that speaks of other classes than the student, or is not always listened to."""

from __future__ import annotations

import torch

from basics import distributed
from kd.class_map import ClassMap
from kd.distiller import Teacher, TeacherOutput

HEARD_BATCHES = 10  # after which is told how much of a teacher's word is listened to


class MappedTeacher:
    """A teacher whose word is put into the student's classes, and left out where it is of no use.

    Args:
        teacher: live or cached; its logits are of its own classes.
        class_map: what these mean.
        min_confidence: positions at which the most likely of the student's classes has less probability than this
            are left out of the losses on logits; 0 listens to all.
        tells: print once, after a few batches, at which share of the positions it was listened to: a teacher that is
            never heard gives losses of 0, which look like success.
    """

    def __init__(self, teacher: Teacher, class_map: ClassMap, min_confidence: float = 0.0, *, tells: bool = False):
        self.teacher, self.class_map, self.min_confidence, self.tells = teacher, class_map, min_confidence, tells
        self.stride, self.logit_stride = teacher.stride, teacher.logit_stride
        self.tap_channels, self.tap_strides = teacher.tap_channels, teacher.tap_strides
        self.heard: list[torch.Tensor] = []  # shares of the first batches

    @torch.no_grad()
    def __call__(self, batch: dict) -> TeacherOutput:
        told = self.teacher(batch)
        logits, speaks = self.class_map.logits(told.logits), self.class_map.speaks(told.logits)
        if self.min_confidence > 0:
            sure = logits.softmax(1).amax(1) >= self.min_confidence
            speaks = sure if speaks is None else speaks & sure
        if self.tells and speaks is not None and len(self.heard) < HEARD_BATCHES:
            self.heard.append(speaks.float().mean())
            if len(self.heard) == HEARD_BATCHES and distributed.is_main():
                share = 100 * torch.stack(self.heard).mean().item()
                print(f"the teacher is listened to at {share:.1f} % of the positions ({HEARD_BATCHES} batches)")
        known = self.class_map.known
        classes = known if len(known) < len(self.class_map.student_names) else None
        return TeacherOutput(logits, told.taps, classes, speaks)
