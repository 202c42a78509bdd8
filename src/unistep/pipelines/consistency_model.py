"""`ConsistencyModelPipeline`: a drop-in for diffusers' class of that name.

    pipe = ConsistencyModelPipeline.from_pretrained("openai/diffusers-cd_cat256_l2")
    pipe(num_inference_steps=1).images[0].save("cat.png")
    pipe(num_inference_steps=None, timesteps=[18, 0]).images[0]

Calls, meanings and errors are those of diffusers 0.42; the same generator gives the same images. Differences:

- every format that this package reads can be opened, run directories too;
- `sigmas` gives noise levels directly, `seeds` one seed an image; any number of channels;
- labels that are not given are drawn from the generator, so that a seed fixes them as well;
- in half precision noise, scalings and images stay fp32, as do the first and the last layers;
- a schedule that does not begin at sigma_max is refused;
- calls of one pipeline from several threads give what they give one after the other.

docs/diffusers.md lists the options of diffusers' that are refused.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from unistep.core.finite import FiniteWatch, not_finite
from unistep.generation.classes import without_names
from unistep.pipelines.arguments import Labels, Seeds, check_begin, check_call, class_of_each, generators
from unistep.pipelines.noise import randn
from unistep.pipelines.numbers import Numbers, Whole, whole_number
from unistep.pipelines.output import ImagePipelineOutput, OutputType, postprocess, to_pil
from unistep.pipelines.precision import warn_of_fp16
from unistep.pipelines.stored import StoredPipeline
from unistep.pipelines.unet import classes_of, dtype_of, run, shape_of


class ConsistencyModelPipeline(StoredPipeline):
    """A consistency model and its scheduler.

    Args:
        unet: network of this package, or diffusers' `UNet2DModel`.
        scheduler: noise levels and steps; diffusers' class is taken over with its settings.
        info: all other settings of the model's files, which are kept when the pipeline is saved; None is the default.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: Whole = 1,
        class_labels: Labels = None,
        num_inference_steps: Whole | None = 1,
        timesteps: Numbers | None = None,
        generator: Seeds = None,
        latents: Shaped[Tensor, "..."] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Tensor, Tensor], Any] | None = None,
        callback_steps: Whole | None = 1,
        *,
        sigmas: Numbers | None = None,
        seeds: Numbers | Whole | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Makes images.

        Args:
            batch_size: number of images.
            class_labels: class of each image by number or name, list, array or tensor [B], or one class of a single
                image; drawn if not given; ignored by unconditional models.
            num_inference_steps: number of network evaluations, evenly spaced over the grid.
            timesteps: indices of the grid in descending order that end with 0 (sigma_max), as [18, 0]; instead of
                `num_inference_steps`.
            generator: generator of noise and labels, for all images or one an image; a number is the seed of a CPU
                generator; None is torch's default one.
            latents: unit Gaussian noise [B, C, H, W] to begin with; drawn if not given.
            output_type: kind of the images: "pil", "np" or "pt".
            return_dict: whether an `ImagePipelineOutput` is returned; otherwise a tuple.
            callback: function called as callback(step, timestep, images [B, C, H, W]) every `callback_steps` steps.
            callback_steps: number of steps from one call of `callback` to the next.
            sigmas: noise levels, strictly descending from sigma_max; instead of `num_inference_steps`.
            seeds: seed of each image, or that of a single image; the same as a list of CPU generators with these seeds.

        Returns:
            The images.

        Raises:
            UserError: (a ValueError) arguments that contradict each other or the model.
            NotFiniteError: (a UserError) an output of the network is NaN or infinite.
        """
        unet = self.unet
        count = whole_number("batch_size", batch_size)
        shape = (count, *shape_of(unet))
        kind = check_call(shape, num_inference_steps, timesteps, sigmas, latents, output_type, callback, callback_steps)
        every = whole_number("callback_steps", callback_steps)
        drawing = generators(generator, seeds, count)
        with self._at_work() as device:
            if device.type == "cpu" and dtype_of(unet) == torch.float16:
                warn_of_fp16()
            # Of this call alone: others may run in other threads. The public one shows where the latest call stands.
            scheduler = self.scheduler.fork()
            x = randn(shape, drawing, device) if latents is None else latents.to(device, torch.float32)
            x = x * scheduler.init_noise_sigma
            numbers = without_names(class_labels, self.info.class_names)
            labels = class_of_each(numbers, classes_of(unet), count, drawing, device)

            if sigmas is not None:
                scheduler.set_timesteps(sigmas=sigmas, device=device)
            elif timesteps is not None:
                scheduler.set_timesteps(timesteps=timesteps, device=device)
            else:
                scheduler.set_timesteps(num_inference_steps, device=device)
            check_begin(timesteps, sigmas, scheduler.config)

            steps, watch = scheduler.timesteps, FiniteWatch()
            with self._bar(len(steps)) as bar:
                for i, t in enumerate(steps):
                    output = run(unet, scheduler.scale_model_input(x, t), t, labels)
                    watch.note(output)
                    x = scheduler.step(output, t, x, drawing, return_dict=False)[0]
                    self.scheduler.adopt(scheduler)
                    if bar is not None:
                        bar.update()
                    if callback is not None and i % every == 0:
                        callback(i, t, x)

        if not watch.finite():
            raise not_finite(dtype_of(unet))
        images = postprocess(x, kind)
        return ImagePipelineOutput(images) if return_dict else (images,)

    # ------------------------------------------------------------------------------------------ steps of a call

    def check_inputs(
        self,
        num_inference_steps: Whole | None,
        timesteps: Numbers | None,
        latents: Shaped[Tensor, "..."] | None,
        batch_size: Whole,
        img_size: Whole,
        callback_steps: Whole | None,
    ) -> None:
        """Checks the arguments of a call, as diffusers' method of that name.

        Raises:
            UserError: arguments that contradict each other or the model.
        """
        channels = shape_of(self.unet)[0]
        size = whole_number("img_size", img_size)
        shape = (whole_number("batch_size", batch_size), channels, size, size)
        check_call(shape, num_inference_steps, timesteps, None, latents, "pt", None, callback_steps)

    def prepare_latents(
        self,
        batch_size: int,
        num_channels: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str | int,
        generator: Seeds,
        latents: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Returns noise of the scheduler's first level.

        Args:
            batch_size, num_channels, height, width: shape of the noise.
            dtype: dtype of the result; the noise is drawn in fp32.
            device: device of the result.
            generator: generator or seed, for all images or one an image.
            latents: unit Gaussian noise; drawn if not given.

        Raises:
            UserError: another number of generators than of images.
        """
        shape = (batch_size, num_channels, height, width)
        drawing = generators(generator, None, batch_size)
        x = randn(shape, drawing, torch.device(device)) if latents is None else latents
        return x.to(device, dtype) * self.scheduler.init_noise_sigma

    def prepare_class_labels(
        self, batch_size: int, device: torch.device | str | int, class_labels: Labels = None
    ) -> Int[Tensor, " B"] | None:
        """Returns the class of each image; drawn where none is given, None for an unconditional model.

        Raises:
            UserError: labels that are no integers, of another number than the images, or beyond the classes.
        """
        return class_of_each(class_labels, classes_of(self.unet), batch_size, None, torch.device(device))

    def postprocess_image(self, sample: Shaped[Tensor, "B C H W"], output_type: OutputType = "pil") -> Any:
        """Converts images in [-1, 1] to "pil", "np" or "pt"."""
        return postprocess(sample, output_type)

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> Any:
        """Converts images in [0, 1], [B, H, W, C] or a single one, to PIL images."""
        return to_pil(images)

    def _bar(self, total: int) -> Any:
        """Returns a tqdm bar for several steps, which shows on terminals alone."""
        return nullcontext() if total == 1 and not self._progress_bar_config else self.progress_bar(total=total)
