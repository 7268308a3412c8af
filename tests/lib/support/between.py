"""What a user's own trainer puts between trainer and model: mixins that pass the count of a step on, or drop it."""

from __future__ import annotations


class Drops:
    """Asks the model by itself and knows no count."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class DropsAndSays(Drops):
    loss_is_scaled_for_ga = False


class DropsAndSaysOtherwise(Drops):
    loss_is_scaled_for_ga = True


class DropsOnTheWayUp:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class PassesOn:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class Positional:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class StepDropsOnTheWayUp:
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs)


class StepDivides:
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class StepPassesOn:
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class StepDividesInPlace:
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        loss /= self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class StepDividesAndGoesByItself:
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.args.gradient_accumulation_steps
        loss.backward()
        return loss.detach()


class CountsByItself:
    """A count, whatever the model takes."""

    def get_batch_samples(self, iterator, size, device):
        samples, _ = super().get_batch_samples(iterator, size, device)
        return samples, sum(batch["labels"].ne(-100).sum() for batch in samples)


BETWEEN = [
    StepDividesInPlace,
    StepDividesAndGoesByItself,
    CountsByItself,
    Drops,
    DropsAndSays,
    DropsAndSaysOtherwise,
    DropsOnTheWayUp,
    PassesOn,
    Positional,
    StepDropsOnTheWayUp,
    StepDivides,
    StepPassesOn,
]


class StepDoesNotDivide:
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()


class HalvesAndDrops:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs)
        return (0.5 * loss[0], loss[1]) if return_outputs else 0.5 * loss


class HalvesAndPassesOn:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        return (0.5 * loss[0], loss[1]) if return_outputs else 0.5 * loss


class InHalves:
    """Scores a batch in two parts, each by a step of its own, and returns the mean over rows."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        rows = len(inputs["labels"])
        if rows < 2:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        middle = rows // 2
        parts = [
            {key: value[part] for key, value in inputs.items()} for part in (slice(0, middle), slice(middle, rows))
        ]
        losses = [self.prediction_step(model, part, True, ignore_keys)[0] * len(part["labels"]) for part in parts]
        return sum(losses) / rows, None, None
