"""Types that cross a process boundary, shared by HTTP and streams.

========================  ============================================  =======================
reward contract           ``ScoreRequest`` -> ``ScoreResponse``          router -> client, HTTP
client card               ``Card``                                      client -> router, HTTP
stream ``prompts``        ``PromptRecord``      (``mor.prompt/1``)       trainer -> rollout
stream ``rollouts``       ``RolloutRecord``     (``mor.rollout/1``)      rollout -> router
stream ``rewards``        ``RewardRecord``      (``mor.group_reward/1``) router  -> trainer
stream ``events``         ``EventRecord``       (``mor.event/1``)        trainer -> run control
stream ``dead``           ``DeadLetter``        (``mor.dead/1``)         any     -> trainer
========================  ============================================  =======================

Every type forbids unknown fields: a misspelt field of a request is an error with its name instead of a silent default.
Whoever reads what another process of MoR wrote (an answer, a record, a stored entry) parses with ``extra="ignore"``:
that process may have a newer release. So a new field needs a default that keeps the old meaning; a record whose meaning
changes gets another ``schema``.
Numbers on the wire are finite: each type refuses NaN and infinity, so that no reader has to.
"""

from mor_core.wire.asks import Asks, PromptOrigin
from mor_core.wire.base import Count, Documented, Finite, GroupId, JsonObject, RunId, Sha256, Wire
from mor_core.wire.contract import (
    CONTRACT,
    LARGEST_SCORE,
    Calibration,
    Card,
    Contract,
    ItemScores,
    Limits,
    ModelRef,
    RewardItem,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from mor_core.wire.messages import (
    MOST_TEXT,
    ImagePart,
    ImageUrl,
    Message,
    Messages,
    Part,
    TextPart,
    chat_template_messages,
    image_hashes,
)
from mor_core.wire.privacy import (
    AnswerLimits,
    Distillation,
    MembershipAttack,
    Privacy,
    PrivacyAudit,
    PrivacyUnit,
)
from mor_core.wire.records import (
    LARGEST_REWARD,
    LESS_TRUSTED,
    NOT_SENT,
    UNREADABLE,
    ClientScore,
    DeadLetter,
    EventRecord,
    GroupReward,
    ObjectiveShare,
    PromptRecord,
    Record,
    RewardExplanation,
    RewardRecord,
    RolloutRecord,
    Sampling,
    StageName,
    StreamName,
    TokenBlock,
    issuer_of,
)
from mor_core.wire.weights import (
    WEIGHTS_FORMAT,
    Algorithm,
    TensorInfo,
    WeightsDelta,
    WeightsFile,
    WeightsManifest,
    WeightsRef,
)

__all__ = [
    "CONTRACT",
    "LARGEST_REWARD",
    "LARGEST_SCORE",
    "LESS_TRUSTED",
    "MOST_TEXT",
    "NOT_SENT",
    "UNREADABLE",
    "WEIGHTS_FORMAT",
    "Algorithm",
    "AnswerLimits",
    "Asks",
    "Calibration",
    "Card",
    "ClientScore",
    "Contract",
    "Count",
    "DeadLetter",
    "Distillation",
    "Documented",
    "EventRecord",
    "Finite",
    "GroupId",
    "GroupReward",
    "ImagePart",
    "ImageUrl",
    "ItemScores",
    "JsonObject",
    "Limits",
    "MembershipAttack",
    "Message",
    "Messages",
    "ModelRef",
    "ObjectiveShare",
    "Part",
    "Privacy",
    "PrivacyAudit",
    "PrivacyUnit",
    "PromptOrigin",
    "PromptRecord",
    "Record",
    "RewardExplanation",
    "RewardItem",
    "RewardRecord",
    "RolloutRecord",
    "RunId",
    "Sampling",
    "ScoreItem",
    "ScoreRequest",
    "ScoreResponse",
    "Sha256",
    "StageName",
    "StreamName",
    "TensorInfo",
    "TextPart",
    "TokenBlock",
    "WeightsDelta",
    "WeightsFile",
    "WeightsManifest",
    "WeightsRef",
    "Wire",
    "chat_template_messages",
    "image_hashes",
    "issuer_of",
]
