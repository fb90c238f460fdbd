/** The objective engine: what an algorithm makes of a batch, in closed form and float64, and what is said about it. */
export * from "./types";
export { HEADINGS, SLOTS } from "./slots";
export { INPUTS, howToCapture, makeBatch, type Batch } from "./inputs";
export { algorithms, describePart } from "./registry";
export { specFrom } from "./definition";
export {
  givenAdvantages,
  hyperParameters,
  inputs,
  isOff,
  needs,
  parameters,
  scope,
  uses,
  withHyperParameters,
} from "./describe";
export { asRecorded } from "./recorded";
export { differences, written } from "./difference";
export { advantagesOf, evaluate } from "./evaluate";
