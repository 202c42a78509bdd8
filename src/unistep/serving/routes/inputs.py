"""Inputs of the APIs in the server's own words: prompts, masks, fields, and the images of a result."""

from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor

from unistep.editing.result import EditResult
from unistep.errors import UserError
from unistep.serving.config import ServerConfig
from unistep.serving.errors import Refusal
from unistep.serving.model import ServedModel
from unistep.serving.pictures import read_upload
from unistep.serving.work import decoded_base64, label_numbers

Options = TypeVar("Options", bound=BaseModel)

_MASKS = ("lower", "upper", "left", "right", "centre", "random")
_LONGEST_NAME = 64


def validated(kind: type[Options], given: dict[str, Any]) -> Options:
    """Returns fields as a model of pydantic's.

    Raises:
        Refusal: a field is unknown or wrong.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refusal(400, "invalid_request_error", f"{where}: {first['msg']}"[:500], where[:200]) from None


def take_prompt(model: ServedModel, given: dict[str, Any], prompt: str | None) -> str:
    """Puts the class that a prompt names among the options, where these name none; returns a note where it names none.

    Args:
        model: model with the classes.
        given: options by name, which are changed.
        prompt: name or number of a class, or a text that holds the name of one as a word.
    """
    if not prompt or not prompt.strip() or given.get("class_labels") is not None:
        return ""
    if not model.num_classes:
        return "the model is unconditional: the prompt was ignored"
    try:
        numbers = label_numbers(model, prompt.strip())
    except UserError:
        words = {word.strip(".,;:!?\"'").lower() for word in prompt.split()}
        numbers = [i for i, name in enumerate(model.class_names) if name.lower() in words]
    if not numbers or not 0 <= numbers[0] < model.num_classes:
        return "the prompt names no class of the model and was ignored; the classes are drawn"
    given["class_labels"] = numbers[:1]
    return ""


def painted_mask(picture: Image.Image) -> Image.Image:
    """Returns a mask that is white where to paint; OpenAI's are transparent there."""
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        if any(alpha.histogram()[:255]):
            return alpha.point(lambda value: 255 - value)
    return picture.convert("L")


async def text_mask(text: Any, config: ServerConfig) -> Image.Image | str:
    """Returns a mask that is given as text: the name of one, or a picture in base64; never a path of the server's disk.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(text, str):
        raise UserError("is no text", f"give {', '.join(_MASKS)}, box:..., or a picture in base64", field="mask")
    if text in _MASKS or text.startswith("box:"):
        return text
    if len(text) < _LONGEST_NAME and not text.startswith("data:"):
        raise UserError(f"{text!r} is none", f"send a picture, or {', '.join(_MASKS)} or box:...", field="mask")
    return painted_mask(await read_upload(decoded_base64(text, "mask"), config, "mask"))


def images_of(result: EditResult) -> list[Tensor]:
    """Returns the frames of a path, or the candidates of all images, best first."""
    if result.frames is not None:
        return list(result.frames)
    return [candidate for one in result for candidate in one.candidates]
