from __future__ import annotations

from pointer_rl.errors import InputError
from pointer_rl.types import Judgement


class FirstWord:
    version = "7"

    def normalise(self, answer):
        return (answer.split() or [""])[0].lower()

    def judge(self, answer, answers):
        if not answers:
            raise InputError("acme needs an answer to compare with")
        equal = [self.normalise(answer) == self.normalise(each) for each in answers]
        return Judgement(any(equal), sum(equal) / len(equal))
