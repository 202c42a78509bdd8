// Noise levels: the Karras grid, schedules of sampling, and levels of edits.

const root = (sigma, rho) => sigma ** (1 / rho);

// Level at an index of a grid of `num` levels; index 0 is sigma_max, num - 1 is sigma_min, both exactly.
export function karrasSigma(index, num, { sigma_min, sigma_max, rho }) {
  if (index === 0) return sigma_max;
  if (index === num - 1) return sigma_min;
  const top = root(sigma_max, rho);
  return (top + (index / (num - 1)) * (root(sigma_min, rho) - top)) ** rho;
}

export function karrasSigmas(num, sigma_min, sigma_max, rho) {
  return Array.from({ length: num }, (_, i) => karrasSigma(i, Math.max(num, 2), { sigma_min, sigma_max, rho }));
}

// Levels of a consistency sampler: the model's own schedule of so many steps, or indices spaced evenly over the grid.
export function plan(model, { steps = 1, timesteps, sigmas }) {
  if (sigmas) return sigmas;
  const most = model.noise_levels - 1;
  if (!timesteps && !(steps >= 1 && steps <= most)) throw new Error(`steps ${steps} must lie between 1 and ${most}`);
  const own = timesteps ?? model.schedules.find((one) => one.length === steps) ?? Array.from({ length: steps }, (_, i) => Math.floor((i * most) / steps));
  return own.map((index) => (model.noise_levels === 1 ? model.sigma_max : karrasSigma(index, model.noise_levels, model)));
}

// Levels of an edit: `steps` of them from the first to one after which nothing is left to be changed.
export function editLevels({ first, last, steps }, rho) {
  return karrasSigmas(steps, Math.min(last, first / 2), first, rho);
}

// Levels of the evaluations that add no noise.
export function settleLevels(count, most, rho) {
  const first = Math.min(2, most);
  return count ? karrasSigmas(count, Math.min(0.1, first / 2), first, rho) : [];
}

// Levels from a level of noise down towards sigma_min, which is left out.
export function levelsBelow(sigma, steps, sigma_min, rho) {
  const top = root(sigma, rho), way = Math.min(root(sigma_min, rho) - top, 0);
  return Array.from({ length: steps }, (_, i) => (i ? (top + (i / steps) * way) ** rho : sigma));
}

// The level at which an edit of a strength from 0 to 1 begins.
export function sigmaOfStrength(strength, { sigma_min, sigma_max, rho }) {
  if (!(strength > 0 && strength <= 1)) throw new Error(`strength ${strength} must lie above 0 and not above 1`);
  if (strength === 1) return sigma_max;
  const low = root(sigma_min, rho);
  return (low + strength * (root(sigma_max, rho) - low)) ** rho;
}
