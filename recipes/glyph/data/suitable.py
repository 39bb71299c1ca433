"""Names that stay out of the set: brands and their products, characters, and what harms."""

from __future__ import annotations

import re

LICENCES = frozenset(
    {"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"}
)

_BRANDS = """
    adobe aftereffects airbnb airdrop airpod airpods alipay amazon android angular app_store
    apple_music apple_pay apple_podcast apple_tv apple_watch arduino atlassian audi authy aws
    azure baidu bandcamp batman behance bilibili bing bitbucket blackberry blizzard blogger bmw
    boba_fett bootstrap burger_king c3po cadillac canva chewbacca chrome chromecast coca_cola
    codepen coinbase converse css3? cydia dailymotion darth_vader deezer deviantart dingtalk
    discord disney docker douban douyin dreamweaver dribbble drupal ebay edge_browser einstein
    electron etsy evernote expedia facebook fedora ferrari figma firefox fitbit flickr flutter
    foursquare friendster gameboy gandhi git github gitlab gmail google gopro gravatar groupon
    hangouts harry_potter hello_kitty hitler honda html5? huawei hulu ibm illustrator imac imdb
    indesign instagram instagramm intel internet_explorer ios ipad ipados iphone ipod itunes java
    javascript jenkins jesus jira jquery jsfiddle kaspersky kickstarter kindle kinect lamborghini
    lastfm lego lexus line_app linkedin linux macbook magicmouse mario mastercard mastodon
    mcdonalds medium_logo mercedes messenger meta mickey microsoft minecraft mitsubishi mozilla
    myspace nasa netflix nextjs nfc nike nintendo nodejs notion npm nvidia obama oculus ok_google
    onedrive openai opera osx outlook pac_man packman pacman pandora pantone patreon paypal pepsi
    periscope photoshop php picasa pikachu pinterest playstation pok[eé]_?ball pokemon porsche
    powerpoint premiere_pro prezi producthunt python qq quora qzone r2d2 raspberry_pi react reddit
    renault retina roku ruby_on_rails safari sass sega shazam shopify signal_app sina siri
    sketch_app skype slack slackware slideshare snapchat soundcloud spaceinvaders spiderman
    spongebob spotify squarespace stackoverflow star_wars starbucks steam_logo steve_jobs
    stormtrooper sublime superman svelte telegram tencent tesla threads_app tiktok tinder toyota
    trello tripadvisor trump tumblr twitch twitter twitter_bird typescript uber ubuntu unity
    unsplash uplay vespa viber vimeo visa visual_studio vk volkswagen vsco vue walkman wechat
    weibo weixin whatsapp wii wikipedia winamp windows_logo winrar word_press wordpress x_logo
    xbox xiaomi yahoo yelp yoda youtube yuque zalo zelda zhihu zoom_logo
"""
_HARMFUL = r"""
    abortion beheaded bikini bloody bra breasts? brothel cannabis carnage cigarette cocaine
    condoms? confederate corpse decapitation disembowel\w* dismember\w* execution gallows genital
    genitals gibbet guillotine hanged heroin impaled impalement intercourse lingerie lust lynch
    marijuana naked nazi nude nudity panties penis prostitut\w* rape severed sex sexual sexy slave
    slavery sperm stabbed suicide swastika syringe_blood testicles? thong torture underwear vagina
    vulva wound
"""


def _words(table: str) -> re.Pattern[str]:
    """A pattern for any of the words of a table, whole; a line joins what is several words."""
    words = "|".join(table.split()).replace("_", "[ ]")
    return re.compile(rf"\b(?:{words})\b")


_BRAND = _words(_BRANDS)
_HARM = _words(_HARMFUL)
_LOGO = re.compile(r"\b(?:logo|logos|brand|trademark|trade mark|registered|copyright)\b")


def is_brand(name: str) -> bool:
    """Whether a plain name, as words, names a brand, a product, a character or a real person."""
    return bool(_BRAND.search(name) or _LOGO.search(name))


def is_suitable(name: str) -> bool:
    """Whether a plain name, as words, may enter the set: no brand and nothing that harms."""
    return not (is_brand(name) or _HARM.search(name))
